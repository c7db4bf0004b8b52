"""LiDAR: points, the cells they are collected on, the ground under them, and the rules that make classes."""
