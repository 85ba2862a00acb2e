"""The runner: the half of a site that has scans and a GPU, and no network.

Tasks come as files in a folder that it shares with the courier, and answers go there as files
(``client.shared_folder``). What it has done is in a journal, so that a task that comes again gets the same answer and
is never worked on twice.
"""
