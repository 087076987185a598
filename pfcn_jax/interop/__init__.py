"""Other people's weights <-> our parameter tree."""
