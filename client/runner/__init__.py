"""The runner: the half of a site that has the scans and the GPU, but no network.

Tasks arrive as files in a folder shared with the courier, and answers leave the same way (``client.shared_folder``). A
journal records finished work, so a repeated task gets the same answer and is never worked on twice.
"""
