"""Check of the hospital's dataset before it joins a federation."""
