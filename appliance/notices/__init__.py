"""What people are told without having asked: values, and decisions without a clock, a catalog or a network."""
