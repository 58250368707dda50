"""What an auditor is shown of a month: values, and how they are reckoned. Pure."""
