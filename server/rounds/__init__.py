"""From tasks to the next model: who takes part, what they are sent, which replies count."""
