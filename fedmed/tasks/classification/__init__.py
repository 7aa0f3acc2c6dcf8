"""Does the image show a finding, which class is it, or which of several?"""
