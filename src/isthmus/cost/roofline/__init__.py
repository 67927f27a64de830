"""The roofline: from shapes alone, what every operator of a network costs and what bounds it on a device.

Williams, Waterman and Patterson, Roofline (2009); for language models Yuan et al., LLM Inference Unveiled (2024).
"""
