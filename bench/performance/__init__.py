"""The gateway beside floors and peers, against its targets."""
