"""The hospital's dataset, checked before it joins."""
