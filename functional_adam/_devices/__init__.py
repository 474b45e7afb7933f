"""The placement of the state on several devices."""
