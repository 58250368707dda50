"""The console and the REST API. Talks to the services of the appliance only."""
