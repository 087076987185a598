"""The only composer: configuration, steps and the programs behind each verb."""
