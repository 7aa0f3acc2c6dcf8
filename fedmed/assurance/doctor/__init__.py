"""What a site's engineer wants to know before the first round: does all of it work?"""
