"""How steps are computed: device, precision, layout, accumulation, processes."""
