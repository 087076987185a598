"""The method's insides for single images."""
