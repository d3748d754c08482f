"""Colours and the look of every figure, in a light and a dark version.

A figure is built with the light colours. The page replaces each light colour by its dark partner where the reader's
system asks for dark, so a colour that is to change must come from here. The hues are Okabe and Ito, which colour-blind
readers can tell apart, each at a lightness that has contrast on its background.
"""

from __future__ import annotations

from bokeh.themes import Theme

__all__ = ["DARK", "LIGHT", "RULE_COLORS", "STATE_COLORS", "THEME", "dark_of"]

LIGHT = {
    "ink": "#1f2328",
    "muted": "#59636e",
    "line": "#d1d9e0",
    "paper": "#ffffff",
    "blue": "#0064a8",
    "green": "#00795a",
    "orange": "#c4480f",
    "purple": "#9a4a85",
    "yellow": "#a87400",
    "sky": "#2e8fc9",
    "gray": "#6e7781",
}
DARK = {
    "ink": "#e6edf3",
    "muted": "#9aa4af",
    "line": "#343b44",
    "paper": "#12161b",
    "blue": "#5cb3f2",
    "green": "#3cc9a0",
    "orange": "#f58a55",
    "purple": "#e0a0cb",
    "yellow": "#e6b84a",
    "sky": "#8fd0f7",
    "gray": "#8b949e",
}

# One colour per rule, the same in every figure and table.
RULE_COLORS = {"top": "blue", "fp": "green", "vl": "orange", "oracle": "purple"}
STATE_COLORS = {"NEUTRAL": "gray", "STABLE": "green", "UNSTABLE": "orange"}

_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"

THEME = Theme(
    json={
        "attrs": {
            "Plot": {
                "background_fill_color": None,
                "border_fill_color": None,
                "outline_line_color": None,
                "min_border_left": 56,
                "min_border_right": 12,
                "min_border_top": 8,
                "min_border_bottom": 8,
            },
            "Axis": {
                "axis_line_color": LIGHT["gray"],
                "major_tick_line_color": LIGHT["gray"],
                "minor_tick_line_color": None,
                "major_label_text_color": LIGHT["muted"],
                "major_label_text_font": _FONT,
                "major_label_text_font_size": "12px",
                "axis_label_text_color": LIGHT["ink"],
                "axis_label_text_font": _FONT,
                "axis_label_text_font_size": "13px",
                "axis_label_text_font_style": "normal",
                "axis_label_standoff": 8,
            },
            "Grid": {"grid_line_color": LIGHT["line"], "grid_line_width": 1},
            "Legend": {
                "label_text_color": LIGHT["ink"],
                "label_text_font": _FONT,
                "label_text_font_size": "12px",
                "label_height": 16,
                "glyph_height": 16,
                "background_fill_color": LIGHT["paper"],
                "background_fill_alpha": 0.85,
                "border_line_color": None,
                "padding": 6,
                "spacing": 2,
            },
            "BaseColorBar": {
                "major_label_text_color": LIGHT["muted"],
                "major_label_text_font": _FONT,
                "major_label_text_font_size": "12px",
                "title_text_color": LIGHT["ink"],
                "title_text_font": _FONT,
                "title_text_font_size": "12px",
                "title_text_font_style": "normal",
                "background_fill_color": None,
                "bar_line_color": None,
                "major_tick_line_color": None,
            },
            "Title": {
                "text_color": LIGHT["ink"],
                "text_font": _FONT,
                "text_font_size": "13px",
                "text_font_style": "bold",
            },
        }
    }
)


def dark_of() -> dict[str, str]:
    """Return the dark partner of every light colour."""
    return {LIGHT[name]: DARK[name] for name in LIGHT}
