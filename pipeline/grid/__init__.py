"""Many runs: cells, tuning, published results, and the engines that execute them."""
