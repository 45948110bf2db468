"""What a family of vLLM's models needs to be pruned, one small file each, imported when first asked for."""
