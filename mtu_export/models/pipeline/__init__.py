"""What Stable Diffusion pipelines share: text encoders, VAE, UNet, and the flow through them."""
