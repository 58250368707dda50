"""The appliance: hypervisors, catalog, policies, services, command line. Uses imaging, knows nothing of web."""
