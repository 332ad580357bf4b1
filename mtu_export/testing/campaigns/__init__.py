"""What tests run a little of and benchmarks in full: mutated inputs, loops beside diffusers."""
