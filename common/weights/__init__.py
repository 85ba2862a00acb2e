"""Models and updates as files of raw values, named by their SHA-256; nothing of Flower and no tensor library in here."""
