"""Where the state lies when there are several devices."""
