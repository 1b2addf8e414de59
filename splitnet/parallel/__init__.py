"""Where it is computed: the exchange between towers, placement, fake devices."""
