"""FloKit measurement gateway: from an MMP's callback to one committed row."""
