"""Nodes for ComfyUI, which ``rbctl comfyui install`` puts into its folder ``custom_nodes``.

ComfyUI is imported where a node runs, never when a module is loaded.
"""
