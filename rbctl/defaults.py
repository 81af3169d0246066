"""What is sampled with where neither prompt, flag, recipe nor bundle says otherwise: the official code's values."""

STEPS, GUIDANCE_SCALE = 30, 5.0
NEGATIVE_PROMPT = "monochrome, lowres, bad anatomy, worst quality, low quality"
