"""The pieces of the SGLang core: its server's process, its HTTP, its tokens and its words."""
