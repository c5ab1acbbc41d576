"""Graphs of modules: taking them apart, putting them together, walking them.

Imports run one way: ``locate``, ``nodes`` → ``graphdef`` → ``flatten`` → ``cache`` →
``unflatten`` → ``split``, ``walk``.
"""
