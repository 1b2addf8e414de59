"""What is computed: the tables, the layers, one forward pass. No devices, no processes."""
