"""What credit schemes are made of: fusing streams, cutting chunks, dividing by length, the masked step advantage."""
