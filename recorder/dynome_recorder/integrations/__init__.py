"""Callbacks for trainers; each module needs its framework, and nothing imports them by itself."""
