"""What several tests share: the servers they run against, hand-written fakes, ways to wait."""
