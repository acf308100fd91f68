"""What a user does with the networks: predict, train the network that ships."""
