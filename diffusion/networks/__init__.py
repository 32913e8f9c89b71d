"""Networks that map (x, t, condition) to an output; none knows a schedule."""
