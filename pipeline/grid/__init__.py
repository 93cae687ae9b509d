"""The grid: cells, tuning, published results, and the engines that execute its tasks."""
