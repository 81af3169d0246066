"""What is taken where neither prompt, flag, recipe nor bundle says otherwise; of sampling, the official values."""

BUNDLE = "mini"
STEPS, GUIDANCE_SCALE = 30, 5.0
NEGATIVE_PROMPT = "monochrome, lowres, bad anatomy, worst quality, low quality"
