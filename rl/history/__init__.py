"""What is asked of rollouts after the fact: another reward, the same actions once more, what differs."""
