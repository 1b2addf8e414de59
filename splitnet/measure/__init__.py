"""What it cost: clocks, memory counters, run folders."""
