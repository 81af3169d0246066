"""What editors of diffusers have in common, in the records of their families: their parts, and what they lack."""

from rbctl.bases import NETWORK

EDITOR = {
    **dict.fromkeys(("transformer", "vae", "text_encoder"), NETWORK),
    "tokenizer": (("vocab.json", "tokenizer.json"),),
    "scheduler": (("scheduler_config.json",),),
}
# Options of an image branch beside the text's, of CLIP's text encoders and of a UNet.
WITHOUT_IMAGE_BRANCH = {
    "local_tokens": "none",
    "local_grid": None,
    "local_injection": "concat",
    "pseudo_mask_step": 0,
    "scale": None,
    "embedding": (),
    "vae": None,
    "scheduler": None,
    "guidance_start": 0.0,
    "guidance_stop": 1.0,
    "cache_start": 0.0,
    "cache_span": 0.0,
    "prompt_weighting": False,
    "attention": "auto",
}
TUNING = {
    "local_tokens": "none",
    "local_grid": None,
    "local_injection": "concat",
    "gamma": None,
    "attention": "auto",
    "attention_loss_weight": 0.0,
    "kml_gather": "intended",
    "format": "diffusers",
    "method": "relation_lora",
}
