"""The nodes. Their inputs and outputs are ComfyUI's; what they do lies in the modules beside this one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rbctl import lora, lora_names
from rbctl.comfyui.adapter import Adapter, Individual, load_adapter
from rbctl.comfyui.attention import attn2_blocks, replace_attention
from rbctl.comfyui.boxes import boxes_picture, boxes_text, chosen_boxes
from rbctl.errors import InputError
from rbctl.layout import LayoutPrior
from rbctl.relations import Box

_Inputs = dict[str, dict[str, Any]]


class LoadAdapter:
    """ComfyUI keeps what a node gave until an input changes, so that the networks are loaded once."""

    CATEGORY = "rbctl"
    DESCRIPTION = "Loads the adapter of a bundle, with its image encoders. The checkpoint must be of the same base."
    FUNCTION = "load"
    RETURN_TYPES = ("RBCTL_ADAPTER",)
    RETURN_NAMES = ("adapter",)

    @classmethod
    def INPUT_TYPES(cls) -> _Inputs:
        tooltip = "A name that 'rbctl models list' shows, or a bundle's folder."
        return {"required": {"bundle": ("STRING", {"default": "sdxl", "tooltip": tooltip})}}

    def load(self, bundle: str) -> tuple[Adapter]:
        return (load_adapter(bundle.strip()),)


class LoadRelationLora:
    CATEGORY = "rbctl"
    DESCRIPTION = "Applies a relation LoRA to the model, and tells what its file says of the relation."
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "RBCTL_LAYOUT", "STRING", "STRING")
    RETURN_NAMES = ("model", "layout", "trigger", "roles")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA.",
        "Where each role of the relation usually lies; for Boxes.",
        "The words of the relation in a prompt: A cat TRIGGER a dog.",
        "Its roles, in the order of the individuals.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> _Inputs:
        import folder_paths

        strength = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL",),
                "lora_name": (folder_paths.get_filename_list("loras"),),
                "strength_model": ("FLOAT", strength),
            }
        }

    def load(self, model: Any, lora_name: str, strength_model: float) -> tuple[Any, LayoutPrior | None, str, str]:
        import comfy.sd
        import folder_paths

        file = lora.read(Path(folder_paths.get_full_path_or_raise("loras", lora_name)))
        # In names that ComfyUI knows, whatever the file's are.
        tensors = lora_names.to_kohya(file.tensors, file.rank, sdxl_blocks=False)
        layout = lora.layout_prior([file])
        patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength_model, 0)
        roles = ", ".join(layout.roles) if layout else ""
        return patched, layout, file.metadata.get("rbctl.predicate", ""), roles


class IndividualNode:
    CATEGORY = "rbctl"
    DESCRIPTION = "One individual by its picture. Chain these nodes, in the order of the relation's roles."
    FUNCTION = "encode"
    RETURN_TYPES = ("RBCTL_INDIVIDUALS",)
    RETURN_NAMES = ("individuals",)

    @classmethod
    def INPUT_TYPES(cls) -> _Inputs:
        local = "Add the tokens of the local encoder, for detail. Off where the bundle has none."
        return {
            "required": {
                "adapter": ("RBCTL_ADAPTER",),
                "image": ("IMAGE",),
                "name": ("STRING", {"default": "cat", "tooltip": "The words for it in the prompt."}),
                "local_tokens": ("BOOLEAN", {"default": True, "tooltip": local}),
            },
            "optional": {"individuals": ("RBCTL_INDIVIDUALS", {"tooltip": "Those before this one."})},
        }

    def encode(
        self,
        adapter: Adapter,
        image: torch.Tensor,
        name: str,
        local_tokens: bool,
        individuals: tuple[Individual, ...] = (),
    ) -> tuple[tuple[Individual, ...]]:
        if len(image) != 1:
            raise InputError(f"Individual: image: {len(image)} pictures; give one")
        pixels = (image[0, ..., :3].cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
        return ((*individuals, adapter.individual(Image.fromarray(pixels), name, local_tokens)),)


class Boxes:
    CATEGORY = "rbctl"
    DESCRIPTION = "Where each individual goes: as you write it, else as the relation's layout has it."
    FUNCTION = "choose"
    RETURN_TYPES = ("RBCTL_BOXES", "IMAGE", "STRING")
    RETURN_NAMES = ("boxes", "preview", "numbers")

    @classmethod
    def INPUT_TYPES(cls) -> _Inputs:
        boxes = "A line for each individual: x0, y0, x1, y1 between 0 and 1. Empty: the layout, else side by side."
        side = {"default": 1024, "min": 16, "max": 16384, "step": 8, "tooltip": "Of the preview."}
        return {
            "required": {
                "individuals": ("RBCTL_INDIVIDUALS",),
                "boxes": ("STRING", {"default": "", "multiline": True, "placeholder": boxes, "tooltip": boxes}),
                "width": ("INT", side),
                "height": ("INT", side),
            },
            "optional": {"layout": ("RBCTL_LAYOUT",)},
        }

    def choose(
        self,
        individuals: tuple[Individual, ...],
        boxes: str,
        width: int,
        height: int,
        layout: LayoutPrior | None = None,
    ) -> tuple[tuple[Box, ...], torch.Tensor, str]:
        chosen = chosen_boxes(boxes, len(individuals), layout)
        picture = boxes_picture(chosen, [individual.name for individual in individuals], width, height)
        return chosen, torch.from_numpy(np.asarray(picture) / np.float32(255))[None], boxes_text(chosen)


class ApplyRelation:
    CATEGORY = "rbctl"
    DESCRIPTION = "Shows the individuals to the model, each inside its box."
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> _Inputs:
        gamma = {"default": 0.6, "min": 0.0, "max": 3.0, "step": 0.05}
        part = {"min": 0.0, "max": 1.0, "step": 0.001}
        return {
            "required": {
                "model": ("MODEL",),
                "adapter": ("RBCTL_ADAPTER",),
                "individuals": ("RBCTL_INDIVIDUALS",),
                "boxes": ("RBCTL_BOXES",),
                "gamma": ("FLOAT", {**gamma, "tooltip": "Weight of the individuals' pictures; 0.6 for SDXL."}),
                "start_percent": ("FLOAT", {**part, "default": 0.0}),
                "end_percent": ("FLOAT", {**part, "default": 1.0}),
            }
        }

    def apply(
        self,
        model: Any,
        adapter: Adapter,
        individuals: tuple[Individual, ...],
        boxes: tuple[Box, ...],
        gamma: float,
        start_percent: float,
        end_percent: float,
    ) -> tuple[Any]:
        if len(boxes) != len(individuals):
            raise InputError(
                f"Apply Relation: {len(boxes)} boxes for {len(individuals)} individuals; connect the same to both nodes"
            )
        for name, value in (("gamma", gamma), ("start_percent", start_percent), ("end_percent", end_percent)):
            if not math.isfinite(value):  # ComfyUI's own bounds let NaN through
                raise InputError(f"Apply Relation: {name}: {value} is no finite number")
        adapter.check(list(attn2_blocks(model.model.diffusion_model).values()))
        sampling = model.get_model_object("model_sampling")
        sigmas = sampling.percent_to_sigma(start_percent), sampling.percent_to_sigma(end_percent)
        patched = model.clone()
        replace_attention(patched, adapter.keys_values(individuals, boxes, gamma), boxes, sigmas)
        return (patched,)


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "RbctlLoadAdapter": LoadAdapter,
    "RbctlLoadRelationLora": LoadRelationLora,
    "RbctlIndividual": IndividualNode,
    "RbctlBoxes": Boxes,
    "RbctlApplyRelation": ApplyRelation,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "RbctlLoadAdapter": "Load Adapter (rbctl)",
    "RbctlLoadRelationLora": "Load Relation LoRA (rbctl)",
    "RbctlIndividual": "Individual (rbctl)",
    "RbctlBoxes": "Boxes (rbctl)",
    "RbctlApplyRelation": "Apply Relation (rbctl)",
}
