"""One round of secure aggregation, as fedmed and as other libraries do it."""
