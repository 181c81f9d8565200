"""Pure: values in, values out. No await, clock, socket, log or framework."""
