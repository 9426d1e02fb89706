"""Many runs as one experiment: studies over depths, methods and seeds; runs side by side; what there is."""
