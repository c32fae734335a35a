"""Parts that methods share: backbones, item encoders, states, losses, negatives."""
