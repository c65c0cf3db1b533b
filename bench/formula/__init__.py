"""Formula-driven pre-training: a teacher that has seen nothing but pictures drawn by this code."""
