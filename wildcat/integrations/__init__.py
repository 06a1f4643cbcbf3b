"""Models of wildcat inside other tools, each through the tool's own package."""
