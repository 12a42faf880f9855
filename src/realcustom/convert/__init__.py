"""Weights of others brought into our folders: the release of RealCustom++, timm backbones."""
