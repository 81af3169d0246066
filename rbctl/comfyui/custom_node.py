"""What lies in ComfyUI's folder ``custom_nodes``: the nodes are those of the installed rbctl, and change with it."""

from rbctl.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
