"""The overview: what the people who run studies see of runs and sites, and what they may do about them."""
